"use strict";
(() => {
  const status = document.getElementById("status");

  // Rows are sorted inside their block, so that checkpoints and baselines stay apart; undefined values go last.
  const valueOf = (row, index) => {
    const cell = row.cells[index];
    return cell.dataset.sort ?? cell.textContent.trim();
  };
  const compare = (a, b) => {
    const [x, y] = [Number(a), Number(b)];
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, "en", { numeric: true }) : x - y;
  };
  const headsOf = (table) => table.tHead.rows[table.tHead.rows.length - 1].cells; // a row of groups may stand above
  const sortBy = (table, head) => {
    const index = head.cellIndex;
    const first = head.classList.contains("num") ? "descending" : "ascending";
    const other = first === "ascending" ? "descending" : "ascending";
    const order = head.getAttribute("aria-sort") === first ? other : first;
    for (const th of headsOf(table)) th.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    for (const body of table.tBodies) {
      const rows = [...body.rows].filter((row) => !row.classList.contains("block"));
      rows.sort((r, s) => {
        const [a, b] = [valueOf(r, index), valueOf(s, index)];
        if (a === "" || b === "") return (a === "") - (b === "");
        return sign * compare(a, b);
      });
      body.append(...rows);
    }
    status.textContent = `Sorted by ${head.textContent.trim()}, ${order}.`;
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    for (const head of headsOf(table)) {
      head.querySelector("button").addEventListener("click", () => sortBy(table, head));
    }
  }

  for (const filter of document.querySelectorAll(".filter")) {
    const bodies = filter.dataset.for.split(" ").flatMap((id) => [...document.getElementById(id).tBodies]);
    filter.addEventListener("change", (event) => {
      for (const body of bodies) {
        if (body.dataset.block === event.target.value) body.hidden = !event.target.checked;
      }
    });
  }

  const lightbox = document.getElementById("lightbox");
  const large = lightbox.querySelector("img");
  for (const button of document.querySelectorAll(".zoom")) {
    button.addEventListener("click", () => {
      const small = button.querySelector("img");
      large.src = small.src;
      large.alt = small.alt;
      lightbox.showModal();
    });
  }
  lightbox.querySelector(".close").addEventListener("click", () => lightbox.close());
  lightbox.addEventListener("click", (event) => {
    if (event.target === lightbox) lightbox.close();
  });
})();
