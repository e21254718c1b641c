/* A page on disk may not start workers, and the theme searches in one: a hidden frame takes its place. */
if (location.protocol === "file:")
  window.Worker = function (url) {
    const reply = "postMessage = data => frameElement.dispatchEvent(new MessageEvent('message', {data}))"
    const frame = document.createElement("iframe")
    const loaded = new Promise(resolve => (frame.onload = resolve))
    frame.hidden = true
    frame.srcdoc = `<script>${reply}</script><script src="${url}"></script>`
    frame.postMessage = data =>
      loaded.then(() => frame.contentWindow.dispatchEvent(new MessageEvent("message", {data})))
    document.body.append(frame)
    return frame
  }
