// Columns that sort, tall tables with a filter, drawers that open at their address, and copy buttons. Without this script
// the page shows all of its texts, in the order of the paper.
"use strict";
document.documentElement.classList.add("js");

const MISSING = "–";
const NEXT = { none: "ascending", ascending: "descending", descending: "none" };
const { compare } = new Intl.Collator("en", { numeric: true });

function make(tag, properties, ...content) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...content);
  return element;
}

// ------------------------------------------------------------------------------------------------------------- tables
/** Value of a row in a column: a number, a text, or null where there is none. */
function valueOf(row, column, numeric) {
  const cell = row.cells[column], text = cell.textContent.trim();
  if (numeric) return cell.dataset.value === undefined ? null : Number(cell.dataset.value);
  return text === MISSING ? null : text;
}

/** Rows by the value of a column, equal ones in their old order and those without a value last. */
function sorted(rows, column, numeric, order) {
  if (order === "none") return rows;
  const value = new Map(rows.map(row => [row, valueOf(row, column, numeric)]));
  const sign = order === "ascending" ? 1 : -1;
  const difference = numeric ? (a, b) => a - b : compare;
  const known = rows.filter(row => value.get(row) !== null).sort((a, b) => sign * difference(value.get(a), value.get(b)));
  return [...known, ...rows.filter(row => value.get(row) === null)];
}

/** Let every head of a table sort its rows: ascending, descending, and as they were. */
function makeSortable(table) {
  const body = table.tBodies[0], rows = [...body.rows], heads = [...table.tHead.rows[0].cells];
  for (const [column, head] of heads.entries()) {
    if (!head.textContent) continue;
    const button = make("button", { type: "button" }, ...head.childNodes);
    button.addEventListener("click", () => {
      const order = NEXT[head.getAttribute("aria-sort") ?? "none"];
      heads.forEach(other => other.removeAttribute("aria-sort"));
      if (order !== "none") head.setAttribute("aria-sort", order);
      body.append(...sorted(rows, column, head.classList.contains("num"), order));
    });
    head.append(button);
  }
}

/** Put a box above a table that hides the rows without all of its words. */
function makeFilter(frame) {
  const rows = [...frame.querySelector("tbody").rows];
  const texts = rows.map(row => [...row.cells].map(cell => cell.textContent).join(" ").toLowerCase());
  const box = make("input", { type: "search", placeholder: "filter by words" });
  box.setAttribute("aria-label", `Filter: ${frame.getAttribute("aria-label")}`);
  const count = make("output", {});
  box.addEventListener("input", () => {
    const words = box.value.toLowerCase().split(/\s+/);
    rows.forEach((row, index) => { row.hidden = !words.every(word => texts[index].includes(word)); });
    count.value = `${rows.filter(row => !row.hidden).length} of ${rows.length} rows`;
  });
  frame.before(make("p", { className: "filter" }, box, " ", count));
}

// ------------------------------------------------------------------------------------------------------------ drawers
let opener = null; // the link that was followed last, which the browser forgets

/** Open the drawer that the address names, and close any other. */
function followAddress() {
  const wanted = document.getElementById(location.hash.slice(1));
  for (const drawer of document.querySelectorAll("dialog[open]")) if (drawer !== wanted) drawer.close();
  if (wanted?.matches("dialog:not([open])")) {
    showPictures(wanted);
    wanted.showModal();
    wanted.scrollTop = 0;
  }
}

/** Show the pictures of an experiment, which the page has once, in its drawer too. */
function showPictures(drawer) {
  for (const link of drawer.querySelectorAll("a.panel:not(:has(img))")) {
    const picture = document.getElementById(link.hash.slice(1)).querySelector("img");
    link.prepend(picture.cloneNode());
  }
}

/** Take a closed drawer's name out of the address, so that its link opens it again, and go back to that link. */
function leaveDrawer(event) {
  if (location.hash === `#${event.target.id}`) history.replaceState(null, "", location.href.split("#")[0]);
  if (!location.hash) opener?.focus();
}

/** Put a button beside a command that copies it; where the browser forbids that, the command is selected. */
function makeCopyable(block) {
  const code = block.querySelector("code"), button = make("button", { type: "button" }, "Copy");
  button.addEventListener("click", async () => {
    getSelection().selectAllChildren(code);
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Selected";
    }
  });
  block.append(button);
}

document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll("table").forEach(makeSortable);
  document.querySelectorAll(".scroll.tall").forEach(makeFilter);
  document.querySelectorAll(".command").forEach(makeCopyable);
  document.querySelectorAll("dialog").forEach(drawer => drawer.addEventListener("close", leaveDrawer));
  addEventListener("click", event => { opener = event.target.closest("main a:not(dialog a)") ?? opener; });
  addEventListener("hashchange", followAddress);
  followAddress();
});
