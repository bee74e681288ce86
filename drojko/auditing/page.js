(function () {
  "use strict";
  document.documentElement.classList.add("js");
  var slider = document.getElementById("size");
  var panels = Array.prototype.slice.call(document.querySelectorAll("section[data-size]"));
  function show(index) {
    panels.forEach(function (panel) { panel.hidden = Number(panel.dataset.size) !== index; });
    document.querySelectorAll("#by-size tbody tr").forEach(function (row) {
      row.classList.toggle("current", Number(row.dataset.row) === index);
    });
    document.querySelectorAll("svg .marker").forEach(function (line) {
      var xs = line.dataset.xs.split(" ");
      line.setAttribute("x1", xs[index]);
      line.setAttribute("x2", xs[index]);
    });
    var label = slider.dataset.labels.split("|")[index];
    document.getElementById("size-value").textContent = label;
    slider.setAttribute("aria-valuetext", label);
  }
  if (slider) {
    slider.addEventListener("input", function () { show(Number(slider.value)); });
    show(Number(slider.value));
  }
  function value(cell) {
    var number = parseFloat(cell.dataset.value);
    return isNaN(number) ? cell.textContent.trim().toLowerCase() : number;
  }
  document.querySelectorAll("table.sortable").forEach(function (table) {
    var heads = Array.prototype.slice.call(table.querySelectorAll("thead th"));
    heads.forEach(function (head, column) {
      var button = head.querySelector("button");
      if (!button) { return; }
      button.addEventListener("click", function () {
        var up = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach(function (other) { other.removeAttribute("aria-sort"); });
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        var body = table.tBodies[0];
        var rows = Array.prototype.slice.call(body.rows);
        rows.sort(function (a, b) {
          var one = value(a.cells[column]), two = value(b.cells[column]);
          var order = typeof one === "number" && typeof two === "number"
            ? one - two : String(one).localeCompare(String(two));
          return up ? order : -order;
        });
        rows.forEach(function (row) { body.appendChild(row); });
      });
    });
  });
})();
