// Reads values out of the plots, by pointer and by arrow keys. Without it the page is complete: all of it is in tables.
"use strict";
(() => {
  const HINT = "Point at a plot, or use the arrow keys, to read its values.";
  const clamp = (value, most) => Math.max(0, Math.min(most, value));

  for (const box of document.querySelectorAll("[data-plots]")) {
    const table = document.getElementById(box.dataset.plots);
    const names = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
    const rows = table.tBodies[0].rows;
    const first = Number(table.dataset.first);
    const width = Number(table.dataset.width);
    const readout = box.querySelector(".readout");
    let now = rows.length - 1;
    const show = (number) => {
      now = clamp(number, rows.length - 1);
      const across = clamp(((now + 0.5 - first) / width) * 100, 100) + "%";
      for (const line of box.querySelectorAll(".cursor")) {
        line.setAttribute("x1", across);
        line.setAttribute("x2", across);
        line.classList.add("on");
      }
      const values = [...rows[now].cells].map((cell) => cell.textContent);
      readout.textContent = values.map((value, column) => names[column] + " " + value).join(" · ");
    };
    const moves = { ArrowLeft: -1, ArrowRight: 1, PageUp: -24, PageDown: 24, Home: -rows.length, End: rows.length };
    box.tabIndex = 0;
    readout.textContent = HINT;
    box.addEventListener("keydown", (event) => {
      if (event.key in moves && !event.ctrlKey && !event.altKey && !event.metaKey) {
        event.preventDefault();
        show(now + moves[event.key]);
      }
    });
    for (const canvas of box.querySelectorAll(".canvas")) {
      canvas.addEventListener("pointermove", (event) => {
        const area = canvas.getBoundingClientRect();
        show(Math.floor(first + ((event.clientX - area.left) / area.width) * width));
      });
    }
  }

  for (const box of document.querySelectorAll("[data-lines]")) {
    const lines = [...box.querySelectorAll(".line")].map((line) => [...line.querySelectorAll(".pilot")]);
    const full = lines.filter((pilots) => pilots.length);
    const readout = box.nextElementSibling;
    let line = 0, pilot = -1, on = null;
    const show = (chosen) => {
      if (on) on.classList.remove("on");
      on = chosen;
      on.classList.add("on");
      readout.textContent = on.querySelector("title").textContent;
    };
    const go = (toLine, toPilot) => {
      line = clamp(toLine, full.length - 1);
      pilot = clamp(toPilot, full[line].length - 1);
      show(full[line][pilot]);
      on.querySelector("rect").scrollIntoView({ block: "nearest", inline: "nearest" });
    };
    const moves = {
      ArrowLeft: () => go(line, pilot - 1), ArrowRight: () => go(line, pilot + 1),
      ArrowUp: () => go(line - 1, pilot), ArrowDown: () => go(pilot < 0 ? line : line + 1, pilot),
      Home: () => go(0, 0), End: () => go(full.length - 1, Infinity),
    };
    readout.textContent = HINT.replace("plot", "pilot");
    box.addEventListener("keydown", (event) => {
      if (event.key in moves && full.length && !event.ctrlKey && !event.altKey && !event.metaKey) {
        event.preventDefault();
        moves[event.key]();
      }
    });
    box.addEventListener("pointerover", (event) => {
      const chosen = event.target.closest(".pilot");
      if (chosen) {
        line = full.findIndex((pilots) => pilots.includes(chosen));
        pilot = full[line].indexOf(chosen);
        show(chosen);
      }
    });
  }
})();
