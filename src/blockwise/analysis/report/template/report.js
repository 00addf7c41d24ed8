// Tables sort by the numbers in data-order and filter by words; without this script they can still be read.
const source = atob(document.getElementById("datatables").textContent);
const url = URL.createObjectURL(new Blob([Uint8Array.from(source, (c) => c.charCodeAt(0))], { type: "text/javascript" }));
const { default: DataTable } = await import(url);
URL.revokeObjectURL(url);

const dark = matchMedia("(prefers-color-scheme: dark)");
const follow = () => document.documentElement.classList.toggle("dark", dark.matches);
dark.addEventListener("change", follow);
follow();

for (const table of document.querySelectorAll("table.data:not(.claims)")) {
  new DataTable(table, {
    paging: false,
    order: [],
    autoWidth: false,
    layout: {
      topStart: table.classList.contains("filter") ? { search: { text: "Filter _INPUT_" } } : null,
      topEnd: null,
      bottomStart: table.classList.contains("filter") ? "info" : null,
      bottomEnd: null,
    },
  });
}
document.documentElement.dataset.ready = "yes";
