// Pictures of a list in full, one after the other, over the page. Without this module a picture opens as a page.

/** Shows the pictures that `tiles` gives (links around an img) in `dialog`, beginning with the one that is chosen. */
export function viewPictures(list, dialog, tiles) {
  const picture = dialog.querySelector('img')
  const save = dialog.querySelector('[data-save]')
  const job = dialog.querySelector('[data-job-page]')
  let shown

  function show(tile) {
    shown = tile
    picture.src = tile.href
    picture.alt = tile.querySelector('img').alt
    save.href = tile.href
    const page = tile.closest('.result').querySelector('[data-job-link]')
    job.href = page.href
    job.textContent = page.textContent
    const all = tiles()
    for (const button of dialog.querySelectorAll('[data-step]')) {
      button.disabled = !all[all.indexOf(tile) + Number(button.dataset.step)]
    }
  }

  function step(by) {
    const all = tiles()
    const next = all[all.indexOf(shown) + by]
    if (!next) return
    // What follows is loaded as if one scrolled there.
    next.scrollIntoView({ block: 'center' })
    show(next)
  }

  list.addEventListener('click', (event) => {
    const tile = event.target.closest('a.tile')
    const isPlain = !event.ctrlKey && !event.metaKey && !event.shiftKey && !event.altKey
    if (!tile?.querySelector('img') || !isPlain) return
    event.preventDefault()
    show(tile)
    dialog.showModal()
  })
  dialog.addEventListener('click', (event) => {
    const button = event.target.closest('[data-step]')
    if (button) step(Number(button.dataset.step))
    else if (event.target === dialog || event.target.closest('[data-close]')) dialog.close()
  })
  dialog.addEventListener('keydown', (event) => {
    if (event.key === 'ArrowRight') step(1)
    else if (event.key === 'ArrowLeft') step(-1)
  })
  dialog.addEventListener('close', () => {
    picture.removeAttribute('src')
    shown?.focus()
  })
}
