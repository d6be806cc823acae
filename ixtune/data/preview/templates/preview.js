// The viewer of single images. Rows come from the template; nothing here makes HTML.

makeViewer(document.getElementById("viewer"));

function makeViewer(dialog) {
  const stage = dialog.querySelector(".stage");
  let current = null;

  function show(figure) {
    current = figure;
    const row = figure.closest("tr");
    stage.replaceChildren(figure.cloneNode(true), row.querySelector(".talk details").cloneNode(true));
    stage.querySelector("details").open = true;
    stage.scrollTop = 0;
    const images = [...row.querySelectorAll(".shot")];
    const which = images.length > 1 ? `, image ${images.indexOf(figure) + 1} of ${images.length}` : "";
    dialog.querySelector("h2").textContent = row.querySelector(".name b").textContent + which;
    dialog.querySelector("[data-file]").href = figure.querySelector("a").getAttribute("href");
    if (!dialog.open) dialog.showModal();
  }

  function step(by) {
    const figures = [...document.querySelectorAll(".listing tr:not([hidden]) .shot")];
    show(figures[(figures.indexOf(current) + by + figures.length) % figures.length]);
  }

  document.addEventListener("click", (event) => {
    const link = event.target.closest(".listing .shot a");
    // with a key held, the browser opens the PNG as it would any link
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    show(link.closest(".shot"));
  });
  stage.addEventListener("click", (event) => {
    if (event.target.closest("a")) event.preventDefault();
  });
  dialog.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (event.target === dialog || button?.dataset.close !== undefined) dialog.close();
    else if (button) step(Number(button.dataset.step));
  });
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowRight") step(1);
    if (event.key === "ArrowLeft") step(-1);
  });
}
