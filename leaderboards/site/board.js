"use strict";
(() => {
  const form = document.getElementById("filters");
  const whole = new Set(["dataset", "task", "backbone"]);
  let sorting = null;

  const sortTable = (table, index, down) => {
    const body = table.tBodies[0];
    const value = (row) => row.cells[index].dataset.value ?? row.cells[index].textContent.trim();
    const rows = [...body.rows].map((row, place) => [value(row), row, place]);
    const order = down ? -1 : 1;
    rows.sort(([a, , i], [b, , j]) => {
      const blank = (text) => text === "" || text === "–";
      if (blank(a) || blank(b)) return blank(a) - blank(b) || i - j;
      const [x, y] = [Number(a), Number(b)];
      const told = Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, "en") : x - y;
      return told * order || i - j;
    });
    body.append(...rows.map(([, row]) => row));
    [...table.tHead.rows[0].cells].forEach((cell, i) => {
      if (i === index) cell.setAttribute("aria-sort", down ? "descending" : "ascending");
      else cell.removeAttribute("aria-sort");
    });
  };

  const columnOf = (table, name) =>
    [...table.tHead.rows[0].cells].findIndex((cell) => cell.textContent.trim() === name);

  const remember = () => {
    if (!form) return;
    const state = new URLSearchParams();
    for (const select of form.elements)
      if (select.name && select.value) state.set(select.name, select.value);
    if (sorting) state.set("sort", (sorting.down ? "-" : "") + sorting.name);
    const text = state.toString();
    history.replaceState(null, "", text ? "#?" + text : "#");
  };

  document.addEventListener("click", (event) => {
    const button = event.target.closest("table.sortable thead button");
    if (!button) return;
    const head = button.closest("th");
    const table = button.closest("table");
    const down = head.getAttribute("aria-sort") === "ascending";
    sortTable(table, head.cellIndex, down);
    if (!form) return;
    sorting = { name: head.textContent.trim(), down };
    remember();
  });

  if (!form) return;
  const count = document.getElementById("count");

  const filter = () => {
    let seen = 0;
    let all = 0;
    const wanted = [...form.elements].filter((one) => one.name && one.value);
    for (const block of document.querySelectorAll("div.block")) {
      const fits = wanted.every((one) => !whole.has(one.name) || block.dataset[one.name] === one.value);
      let rows = 0;
      for (const row of block.querySelectorAll("tbody tr")) {
        all += 1;
        const shown =
          fits &&
          wanted.every(
            (one) => whole.has(one.name) || row.dataset[one.name].split("|").includes(one.value),
          );
        row.hidden = !shown;
        rows += shown;
      }
      block.hidden = !rows;
      seen += rows;
    }
    count.textContent = wanted.length ? `${seen} of ${all} rows are shown.` : `${all} rows.`;
    document.getElementById("kept").hidden = !wanted.length;
  };

  const restore = () => {
    if (!location.hash.startsWith("#?")) return;
    const state = new URLSearchParams(location.hash.slice(2));
    for (const select of form.elements)
      if (select.name) {
        const asked = state.get(select.name) ?? "";
        select.value = [...select.options].some((one) => one.value === asked) ? asked : "";
      }
    const asked = state.get("sort");
    if (asked) {
      sorting = { name: asked.replace(/^-/, ""), down: asked.startsWith("-") };
      for (const table of document.querySelectorAll("div.block table")) {
        const index = columnOf(table, sorting.name);
        if (index >= 0) sortTable(table, index, sorting.down);
      }
    }
  };

  form.hidden = false;
  form.addEventListener("change", () => {
    filter();
    remember();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => {
    setTimeout(() => {
      sorting = null;
      for (const table of document.querySelectorAll("div.block table")) sortTable(table, 0, false);
      filter();
      remember();
    });
  });
  window.addEventListener("hashchange", () => {
    restore();
    filter();
  });
  restore();
  filter();
})();
