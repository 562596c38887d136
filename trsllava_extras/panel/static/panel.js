// The search panel: draws what Python found, tells Python what is asked. Texts are set as text;
// the only HTML is that of a card, which Python escapes.

const LARGEST = 8e6; // bytes; Jupyter's connection takes messages of 10 MB

const el = (tag, options = {}, ...children) => {
  const { text, attributes = {}, ...rest } = options;
  const made = Object.assign(document.createElement(tag), rest);
  if (text !== undefined) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
};
const button = (text, title, onclick, more = {}) =>
  el("button", { type: "button", text, title, onclick, ...more });

function render({ model, el: host }) {
  const choices = model.get("choices");
  const result = () => model.get("result");
  const request = () => model.get("request");
  const tiles = () => result().tiles || [];

  function ask(changes) {
    list.classList.add("busy");
    if (!("query" in changes)) query.value = request().query; // what was typed was not asked
    const page = "page" in changes ? {} : { page: 1 };
    const count = (request().count || 0) + 1;
    model.set("request", { ...request(), ...page, ...changes, count });
    model.save_changes();
  }
  function mark(changes) {
    model.set("marks", { ...model.get("marks"), ...changes });
    model.save_changes();
  }
  // words of which half were there before still go with a picture; others are a new question
  function isReworded(before, now) {
    const words = (text) => text.toLowerCase().split(/[^\p{L}\p{N}]+/u).filter(Boolean);
    const known = words(before);
    return 2 * words(now).filter((word) => known.includes(word)).length >= words(now).length;
  }
  let dropped = null; // marks that belong to other words, for "undo"
  function newQuery(words, changes = {}) {
    const { right = [], wrong = [] } = model.get("marks");
    const isSame = words === request().query;
    dropped =
      !isSame && right.length + wrong.length ? { query: request().query, right, wrong } : null;
    const marks = isSame ? { right, wrong } : { right: [], wrong: [] };
    mark(marks);
    const other = isReworded(request().query, words) ? {} : { picture: "" };
    ask({ query: words, ...marks, ...other, ...changes });
  }
  function undo() {
    const { query: words, ...marks } = dropped;
    dropped = null;
    query.value = words;
    mark(marks);
    ask({ query: words, ...marks });
  }
  function otherQuery(words) {
    query.value = words;
    newQuery(words, { picture: "" });
  }
  const toggled = (names, name) =>
    names.includes(name) ? names.filter((other) => other !== name) : [...names, name];
  const send = (command, values = {}, buffers = []) =>
    model.send({ command, ...values }, undefined, buffers);
  function loadFiles(files) {
    for (const file of files) {
      if (file.size > LARGEST) {
        status.className = "status error";
        status.textContent = `${file.name} is too large for the browser; in Python: search(image="path/to/it")`;
      } else file.arrayBuffer().then((content) => send("load", { name: file.name }, [content]));
    }
  }

  // — asking —
  const past = el("datalist", { id: `past-${Math.random().toString(36).slice(2)}` });
  const query = el("input", {
    type: "search",
    placeholder: "what the image should show, then Enter",
    attributes: { "aria-label": "query", list: past.id },
    title: "a sentence, or parts: storage tanks + 0.5 river - houses, [image id] + umbrellas",
  });
  const file = el("input", {
    type: "file",
    hidden: true,
    multiple: true,
    onchange: () => (loadFiles(file.files), (file.value = "")),
  });
  const form = el(
    "form",
    { onsubmit: (event) => (event.preventDefault(), newQuery(query.value)) },
    query,
    past,
    el("button", { type: "submit", text: "search" }),
    button("by picture …", "an image, described in words; a saved page or a saved selection", () =>
      file.click(),
    ),
    choices.has_captions
      ? button(
          "a caption of the dataset",
          "take a reference caption as the query, so that hits can be told from misses",
          () => send("caption"),
        )
      : "",
    file,
  );
  form.setAttribute("role", "search");
  const picture = el("div", { className: "asked", hidden: true });
  const notes = el("div");

  // — filters —
  const filters = {};
  const field = (name, label, control) => {
    filters[name] = control;
    control.onchange = () =>
      ask({
        [name]: control.type === "number" || name === "k" ? Number(control.value) : control.value,
      });
    return el("label", { className: control.tagName === "INPUT" ? "wide" : "" }, label, control);
  };
  const select = (values) =>
    el(
      "select",
      {},
      ...values.map((value) => el("option", { value, text: value === "" ? "all" : value })),
    );
  const row = el(
    "div",
    { className: "row" },
    field("method", "rule", select(choices.methods)),
    choices.labels.length ? field("label", "class", select(["", ...choices.labels])) : "",
    field("k", "images", select(choices.sizes)),
    field("where", "where", el("input", { placeholder: choices.where_hint })),
    choices.has_places
      ? field(
          "bbox",
          "box",
          el("input", { placeholder: "west,south,east,north in degrees, or click the map" }),
        )
      : "",
  );

  // — result —
  const status = el("div", { className: "status", attributes: { role: "status" } });
  const list = el("ol", { className: "tiles", attributes: { "aria-label": "images found" } });
  const goTo = (number) => ask({ page: Math.min(Math.max(number, 1), result().pages) });
  const previous = button("‹ previous", "previous page", () => goTo(result().page - 1));
  const next = button("next ›", "next page", () => goTo(result().page + 1));
  const page = el("input", {
    type: "number",
    min: 1,
    attributes: { "aria-label": "page" },
    onchange: () => goTo(Math.round(Number(page.value)) || 1),
  });
  const pages = el("span");
  const again = button("search again", "relevance feedback: towards ✓, away from ✗", () =>
    ask(model.get("marks")),
  );
  const clear = button("clear marks", "forget ✓ and ✗", () => {
    mark({ right: [], wrong: [] });
    ask({ right: [], wrong: [] });
  });
  const paging = el("div", { className: "row" }, previous, page, pages, next, again, clear);
  const what = el("select", { attributes: { "aria-label": "what is saved" } });
  const word = el("input", {
    placeholder: "a tag",
    size: 18,
    attributes: { "aria-label": "tag" },
    title: "a word to keep with the selected images; where: tag = 'word'",
  });
  const kinds = ["csv", "html", ...(choices.has_places ? ["geojson"] : []), "coco", "folder", "imagefolder"];
  const saving = el(
    "div",
    { className: "row" },
    "save",
    what,
    ...kinds.map((kind) =>
      button(
        { html: "page", geojson: "GeoJSON", coco: "COCO", imagefolder: "image folder" }[kind] || kind,
        {
          csv: "CSV with full paths",
          html: "a page that needs no network, of 200 images at most",
          geojson: "places, for QGIS and the like",
          coco: "captions as COCO has them",
          folder: "links to the files, on the machine that searches",
          imagefolder: "copies with captions and tags, for Hugging Face's datasets",
        }[kind],
        () => send("save", { kind, selection: what.value === "selection" }),
      ),
    ),
    button("show selection", "the selected images", () => send("select")),
    button("clear selection", "select none", () => choose([])),
    word,
    button("tag", "keep this word with the selected images", () => send("tag", { word: word.value })),
    button("untag", "take this word from the selected images", () =>
      send("tag", { word: word.value, remove: true }),
    ),
  );
  const box = makeLightbox(
    host,
    () => tiles().length,
    (number, body) => {
      const { image_id, picture: address } = tiles()[number];
      body.replaceChildren(el("img", { src: address, alt: image_id }));
      send("open", { number });
      box.more.replaceChildren(
        ...markButtons(tiles()[number]),
        button(
          "more like this",
          "search by the captions of this image",
          () => (box.close(), otherQuery(`[${image_id}]`)),
        ),
        button("copy path", "of the original file", () => send("path", { number })),
        button("open", "the whole image in a new tab", () => send("picture_of", { number })),
        button("download", "the original file", () => send("download", { number })),
      );
    },
  );

  function choose(names) {
    model.set("selected", names);
    model.save_changes();
  }
  // ✓, ✗ and select; pressed or not as the marks and the selection are
  function markButtons(tile) {
    const name = tile.image_id;
    const made = (text, label, isOn, toggle) => {
      const set = () => one.setAttribute("aria-pressed", isOn());
      const one = button(text, `${label}: ${name}`, toggle, { ariaLabel: `${label}: ${name}` });
      one.addEventListener("drawn", set);
      one.classList.add("mark");
      set();
      return one;
    };
    const marked = (kind) => model.get("marks")[kind] || [];
    const toggleMark = (kind, other) => () =>
      mark({
        [kind]: toggled(marked(kind), name),
        [other]: marked(other).filter((n) => n !== name),
      });
    return [
      made("✓", "right", () => marked("right").includes(name), toggleMark("right", "wrong")),
      made("✗", "wrong", () => marked("wrong").includes(name), toggleMark("wrong", "right")),
      made(
        "select",
        "select",
        () => model.get("selected").includes(name),
        () => choose(toggled(model.get("selected"), name)),
      ),
    ];
  }
  function drawTile(tile, number) {
    const picture = tile.picture
      ? el("img", { src: tile.picture, alt: `${tile.image_id}: ${tile.said}` })
      : "no pixels on disk";
    const score = [
      tile.score,
      tile.percentile && `percentile ${tile.percentile}`,
      tile.label,
      tile.of > 1 && tile.score && `variant ${tile.variant} of ${tile.of}`,
    ];
    const verdict = { hit: " ✓ hit", miss: " ✗ miss", "": "" }[tile.verdict];
    const marks = el("div", { className: "marks" }, ...markButtons(tile));
    const words = tile.words.map(([text, hit]) => el(hit ? "mark" : "span", { text }));
    const open = el(
      "button",
      {
        type: "button",
        className: "tile",
        title: `${tile.image_id}: ${tile.said}`,
        onclick: () => box.open(number),
      },
      picture,
    );
    const item = el(
      "li",
      { className: tile.verdict },
      open,
      marks,
      el("b", { text: `${tile.rank}. ${tile.image_id}${verdict}` }),
      el("div", { className: "facts", text: score.filter(Boolean).join(" · ") }),
      el("div", { className: "words" }, ...words),
      tile.tags ? el("div", { className: "tags", text: tile.tags }) : "",
    );
    item.addEventListener("keydown", (event) => {
      if (!isPlain(event)) return;
      const to = { ArrowRight: number + 1, ArrowLeft: number - 1 }[event.key];
      const key = MARK_KEYS[event.key];
      if (to === undefined && key === undefined) return;
      event.preventDefault();
      if (to !== undefined) list.children[to]?.querySelector(".tile").focus();
      else marks.children[key].click();
    });
    return item;
  }
  function drawMarks() {
    for (const one of host.querySelectorAll(".mark")) one.dispatchEvent(new Event("drawn"));
    const { right = [], wrong = [] } = model.get("marks");
    again.hidden = clear.hidden = !(right.length + wrong.length);
    again.textContent = `search again: ${right.length} right, ${wrong.length} wrong`;
    const selected = model.get("selected");
    [...list.children].forEach((item, n) =>
      item.classList.toggle("selected", selected.includes(tiles()[n]?.image_id)),
    );
    const chosen = what.value;
    what.replaceChildren(
      el("option", {
        value: "result",
        text: `all ${single(result().total || 0, "image", "images")}, ranked`,
      }),
      el("option", { value: "selection", text: `${selected.length} selected` }),
    );
    what.value = chosen || "result";
  }
  const single = (n, one, many) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
  let drawn = {}; // the request that the fields show
  function draw() {
    const {
      query: words,
      error,
      notes: told = [],
      suggestion,
      total,
      milliseconds,
      page: current,
      pages: last,
      picture: by,
    } = result();
    list.classList.remove("busy");
    status.className = error ? "status error" : "status";
    if (error) {
      status.textContent = error;
      notes.replaceChildren();
      page.value = current;
      drawn = { ...drawn, query: request().query }; // what is in the field, until something else comes
      return;
    }
    if (words === undefined) return;
    status.replaceChildren(
      el("b", { text: words }),
      ` · ${single(total, "image", "images")} searched, ${single(last, "page", "pages")}`,
      milliseconds ? ` · ${milliseconds} ms` : "",
    );
    const isTyping = query.value !== (drawn.query ?? query.value);
    if (drawn.query !== request().query && !isTyping) query.value = request().query;
    for (const [name, control] of Object.entries(filters)) {
      const isEdited = drawn[name] !== undefined && control.value !== String(drawn[name]);
      if (drawn[name] !== request()[name] && !isEdited) control.value = request()[name] ?? "";
    }
    drawn = { ...request() };
    past.replaceChildren(...model.get("history").map((value) => el("option", { value })));
    notes.replaceChildren(...told.map((text) => el("p", { className: "note", text })));
    if (dropped)
      notes.append(
        el(
          "p",
          { className: "note" },
          `${dropped.right.length} right and ${dropped.wrong.length} wrong of “${dropped.query}” do not count for other words `,
          button("undo", "back to these words and their marks", undo),
        ),
      );
    if (suggestion)
      notes.append(
        button(`search “${suggestion}”`, "the same with a minus", () => otherQuery(suggestion)),
      );
    picture.hidden = !by?.address;
    if (by?.address)
      picture.replaceChildren(
        el("img", { src: by.address, alt: by.name }),
        el("span", { text: by.text }),
        button("✕", "search by words alone", () => ask({ picture: "" }), {
          ariaLabel: "search by words alone",
        }),
      );
    previous.disabled = current <= 1;
    next.disabled = current >= last;
    page.value = current;
    page.max = last;
    pages.textContent = `of ${last}`;
    const key = JSON.stringify(tiles());
    if (list.key !== key) list.replaceChildren(...tiles().map(drawTile));
    if (list.key && list.key !== key) status.scrollIntoView({ block: "nearest" });
    list.key = key;
    drawMarks();
  }

  const root = el(
    "section",
    {
      className: "trsllava",
      attributes: { "aria-label": "image search" },
    },
    form,
    picture,
    row,
    status,
    notes,
    list,
    paging,
    saving,
  );
  root.addEventListener(
    "dragover",
    (event) => (event.preventDefault(), root.classList.add("dropping")),
  );
  root.addEventListener("dragleave", () => root.classList.remove("dropping"));
  root.addEventListener("drop", (event) => {
    event.preventDefault();
    event.stopPropagation();
    root.classList.remove("dropping");
    loadFiles(event.dataTransfer.files);
  });
  // keys without Ctrl and the like are for the panel: JupyterLab would make and delete cells
  host.addEventListener("keydown", (event) => {
    if (isPlain(event)) event.stopPropagation();
  });
  host.append(root);

  const onMessage = (message, buffers) => {
    if (message.card !== undefined && message.number === box.current())
      box.body.innerHTML = message.card;
    if (message.path !== undefined) {
      if (navigator.clipboard) navigator.clipboard.writeText(message.path);
      else window.prompt("path of the original file", message.path);
    }
    if (message.file === undefined) return;
    const address = URL.createObjectURL(new Blob([buffers[0]], { type: message.type }));
    if (message.in_tab) window.open(address, "_blank");
    else el("a", { href: address, download: message.file }).click();
    setTimeout(() => URL.revokeObjectURL(address), 60000);
  };
  model.on("msg:custom", onMessage);
  model.on("change:result", draw);
  model.on("change:selected change:marks", drawMarks);
  draw();
  return () => {
    model.off("msg:custom", onMessage);
    model.off("change:result", draw);
    model.off("change:selected change:marks", drawMarks);
  };
}

export default { render };
