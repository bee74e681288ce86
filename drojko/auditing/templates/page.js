(function () {
  "use strict";
  document.documentElement.classList.add("js");
  var slider = document.getElementById("size");
  var chooser = document.getElementById("model");
  var sections = Array.prototype.slice.call(document.querySelectorAll("section[data-size], section[data-model]"));
  function show() {
    var index = Number(slider.value), model = chooser ? chooser.value : "0";
    sections.forEach(function (part) {
      var size = part.dataset.size, of = part.dataset.model;
      part.hidden = (size !== undefined && Number(size) !== index) || (of !== undefined && of !== model);
    });
    document.querySelectorAll("#by-size tbody tr").forEach(function (row) {
      var of = row.dataset.model;
      row.classList.toggle("current", Number(row.dataset.row) === index && (of === undefined || of === model));
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
  slider.addEventListener("input", show);
  if (chooser) { chooser.addEventListener("change", show); }
  show();
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
