// An image enlarged over the page beside all its captions: arrows lead to the next, Esc closes.
// Shared by the panel and by saved pages.

const MARK_KEYS = { "+": 0, "-": 1, s: 2 }; // right, wrong, select: the first three buttons
const isPlain = (event) => !(event.ctrlKey || event.metaKey || event.altKey);

function makeLightbox(host, count, show) {
  const dialog = document.createElement("dialog");
  dialog.className = "lightbox";
  dialog.setAttribute("aria-label", "image and its captions");
  const bar = document.createElement("div");
  bar.className = "bar";
  const button = (text, label, action) => {
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = text;
    made.setAttribute("aria-label", label);
    made.title = label;
    made.onclick = action;
    bar.append(made);
    return made;
  };
  const place = document.createElement("span");
  const body = document.createElement("div");
  body.className = "body";
  body.tabIndex = 0; // scrolls by keyboard
  let current = 0;

  function open(number) {
    current = (number + count()) % count();
    place.textContent = `${current + 1} of ${count()}`;
    const focused = [...dialog.querySelectorAll("button")].indexOf(document.activeElement);
    show(current, body);
    if (!dialog.open) dialog.showModal();
    dialog.querySelectorAll("button")[focused]?.focus(); // show may have made it anew
    body.scrollTop = 0;
  }
  button("‹", "previous image (left arrow)", () => open(current - 1));
  bar.append(place);
  button("›", "next image (right arrow)", () => open(current + 1));
  const more = document.createElement("span");
  more.className = "more";
  bar.append(more);
  button("✕", "close (Esc)", () => dialog.close());
  dialog.append(bar, body);
  dialog.addEventListener("keydown", (event) => {
    if (!isPlain(event)) return;
    const mark = more.children[MARK_KEYS[event.key]];
    if (event.key === "ArrowRight") open(current + 1);
    else if (event.key === "ArrowLeft") open(current - 1);
    else if (mark) mark.click();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  host.append(dialog);
  return { open, body, more, current: () => current, close: () => dialog.close() };
}
