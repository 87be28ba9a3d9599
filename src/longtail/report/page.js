"use strict";
(() => {
  const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
  const data = JSON.parse(document.getElementById("data").textContent);
  const classes = data.classes;

  // Pointing at a class of a chart, or moving the slider, names it and marks it in every chart.
  const explorer = document.querySelector(".explorer");
  if (explorer && classes.length) {
    const slider = explorer.querySelector("input");
    const said = explorer.querySelector("output");
    const charts = all("svg[data-classes]", explorer);
    const show = (rank) => {
      const entry = classes[rank];
      slider.value = rank;
      slider.setAttribute("aria-valuetext", entry.name);
      const name = document.createElement("strong");
      const isolated = document.createElement("bdi");
      isolated.textContent = entry.name.length > 80 ? entry.name.slice(0, 79) + "…" : entry.name;
      name.append(isolated);
      said.replaceChildren(name, " · " + entry.said);
      for (const chart of charts) {
        const { left, right } = chart.dataset;
        const width = (right - left) / classes.length;
        const cursor = chart.querySelector(".cursor");
        cursor.setAttribute("x", +left + rank * width);
        cursor.setAttribute("width", Math.max(width, 2));
      }
      for (const space of all("svg.space")) {
        space.classList.add("choosing");
        for (const mark of all("[data-class]", space)) {
          mark.classList.toggle("chosen", +mark.dataset.class === entry.index);
        }
      }
    };
    slider.max = classes.length - 1;
    slider.addEventListener("input", () => show(+slider.value));
    for (const chart of charts) {
      const point = (event) => {
        const frame = chart.getBoundingClientRect();
        const x = ((event.clientX - frame.left) / frame.width) * chart.viewBox.baseVal.width;
        const { left, right } = chart.dataset;
        const rank = Math.floor(((x - left) / (right - left)) * classes.length);
        if (rank >= 0 && rank < classes.length) show(rank);
      };
      chart.addEventListener("pointermove", point);
      chart.addEventListener("pointerdown", point);
    }
    explorer.querySelector(".explore").hidden = false;
  }

  // Groups of the feature space can be left out.
  for (const box of all("input[data-group]")) {
    box.closest(".key").hidden = false;
    box.addEventListener("change", () => {
      for (const space of all("svg.space")) space.classList.toggle("no-" + box.dataset.group, !box.checked);
    });
  }

  // The table of classes can be searched and sorted.
  for (const table of all("table.sortable")) {
    const body = table.tBodies[0];
    const find = document.getElementById("find");
    find.hidden = false;
    find.addEventListener("input", () => {
      const wanted = find.value.trim().toLowerCase();
      for (const row of body.rows) row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
    });
    all("th", table).forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        for (const other of all("th", table)) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
        const compare = (a, b) => {
          const [x, y] = [key(a), key(b)];
          if (x === "" || y === "") return (x === "") - (y === "");
          const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
          return down ? -order : order;
        };
        body.append(...[...body.rows].sort(compare));
      });
    });
  }
})();
