"use strict"
// The list of runbooks narrows to what is typed. Without this script the whole list is there.
{
  const box = document.getElementById("shelf-narrow"), words = document.getElementById("shelf-words"), count = document.getElementById("shelf-count")
  const narrow = () => {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean), shelves = [...document.querySelectorAll(".shelf")]
    for (const shelf of shelves) {
      const text = `${shelf.dataset.words} ${shelf.textContent}`.toLowerCase()
      shelf.hidden = !wanted.every(word => text.includes(word))
    }
    for (const folder of document.querySelectorAll(".folder")) folder.hidden = !folder.querySelector(".shelf:not([hidden])")
    const found = shelves.filter(shelf => !shelf.hidden).length
    count.textContent = wanted.length ? `${found} of ${shelves.length} runbooks` : ""
  }
  if (box) { box.hidden = false; words.addEventListener("input", narrow); narrow() }
}
