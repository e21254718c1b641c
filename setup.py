"""Put the trained networks that git has in weights/ into the wheel, with the pipelines that they were trained from."""

import json
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithWeights(build_py):
    """Add ``vpd/shipped`` to what is built."""

    def run(self) -> None:
        """Build, and copy the weights unless this is a checkout that is installed in place, which has its own."""
        super().run()
        if self.editable_mode:
            return
        shipped = Path(self.build_lib) / "vpd" / "shipped"
        shutil.rmtree(shipped, ignore_errors=True)
        for path in ("params.yaml", *needed()):
            target = shipped / path
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if Path(path).is_dir() else shutil.copyfile)(path, target)


def needed() -> list[str]:
    """Name the folders of all trained networks and of their checkpoints."""
    specs = sorted(Path("weights").glob("*/*/spec.json"))
    checkpoints = {json.loads(path.read_text(encoding="utf-8"))["checkpoint"] for path in specs}
    pipelines = [path for name in sorted(checkpoints) for path in sorted(Path("weights").glob(f"*/{name}"))]
    return [str(path) for path in (*(path.parent for path in specs), *pipelines)]


setup(cmdclass={"build_py": BuildWithWeights})
