"use strict";
// The page is complete without this: here times become the reader's own, and tables sort.
(() => {
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone || "your time zone";
  const exact = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
  const brief = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
  for (const element of document.querySelectorAll("time")) {
    const moment = new Date(element.dateTime);
    if (!Number.isNaN(moment.valueOf())) {
      element.title = element.dateTime;
      element.textContent = (element.closest("td") ? brief : exact).format(moment);
    }
  }
  for (const element of document.querySelectorAll(".zone")) {
    element.textContent = element.closest("footer") ? `in ${zone}; those in charts are UTC` : `(${zone})`;
  }

  const keyOf = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
  };
  const compare = (a, b) =>
    typeof a === "number" && typeof b === "number"
      ? a - b
      : String(a).localeCompare(String(b), undefined, { numeric: true });

  for (const button of document.querySelectorAll(".sortable thead button")) {
    button.addEventListener("click", () => {
      const head = button.closest("th");
      const body = head.closest("table").tBodies[0];
      const first = head.classList.contains("n") ? "descending" : "ascending";
      const second = first === "ascending" ? "descending" : "ascending";
      const order = head.ariaSort === first ? second : first;
      for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
      head.ariaSort = order;
      const sign = order === "ascending" ? 1 : -1;
      const rows = [...body.rows];
      rows.sort((a, b) => sign * compare(keyOf(a, head.cellIndex), keyOf(b, head.cellIndex)));
      body.append(...rows);
    });
  }
})();
