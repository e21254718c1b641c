"""The text encoder that a backbone's checkpoint brings along: BERT, trained with the rest of the network."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoTokenizer, BertModel, PreTrainedTokenizerBase
from transformers.utils import logging

from vpd.utils.errors import UserError

LANGUAGE = "language"


class Words(nn.Module):
    """BERT's last hidden states of expressions that are cut or padded to ``length`` tokens, [CLS] and [SEP] included.

    The pooler, which only sees [CLS], is left out.
    """

    def __init__(self, bert: BertModel, tokenizer: PreTrainedTokenizerBase, length: int) -> None:
        super().__init__()
        limit = bert.config.max_position_embeddings
        if length > limit:
            raise UserError(f"model.length is {length}, but the checkpoint's BERT takes at most {limit}; lower it")
        bert.pooler = None
        bert.set_attn_implementation("sdpa")
        self.bert, self.tokenizer, self.length, self.width = bert, tokenizer, length, bert.config.hidden_size

    def forward(self, sentences: list[str]) -> tuple[Tensor, Tensor]:
        """States (batch, length, width), and which of them (batch, length) are no padding."""
        options = {"padding": "max_length", "truncation": True, "max_length": self.length, "return_tensors": "pt"}
        tokens, device = self.tokenizer(sentences, **options), self.bert.device
        ids, mask = tokens.input_ids.to(device), tokens.attention_mask.to(device).bool()
        # With four axes the mask is taken as it is; of two, transformers first looks at the contents, and meta has none.
        return self.bert(input_ids=ids, attention_mask=mask[:, None, None]).last_hidden_state, mask


def load_language(checkpoint: Path) -> tuple[BertModel, PreTrainedTokenizerBase]:
    """Load BERT and its tokenizer from the folder language/ of a checkpoint.

    UserError if the checkpoint has no such folder or it is incomplete or damaged.
    """
    folder = Path(checkpoint) / LANGUAGE
    if not folder.is_dir():
        raise UserError(f"{checkpoint} has no folder {LANGUAGE}/; choose a checkpoint with a text encoder")
    logging.disable_progress_bar()  # Loading takes a moment; standard error is for the stage's own progress.
    options = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        bert, info = BertModel.from_pretrained(folder, add_pooling_layer=False, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{folder} is incomplete or damaged ({reason}); make or fetch this backbone again") from error
    if info["missing_keys"]:
        raise UserError(
            f"{folder} lacks {len(info['missing_keys'])} tensors of its BERT, first '{min(info['missing_keys'])}'; "
            "make or fetch this backbone again"
        )
    return bert.float(), tokenizer
