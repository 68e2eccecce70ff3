// Results that go on while one scrolls: the next page is loaded before its link is reached, and pages that are far from
// the window are emptied, at their height, until they come near again. The browser never has more than a few of them.
import { pageAt, writeTimes } from './console.mjs'
import { openFeed } from './feed.mjs'
import { viewPictures } from './viewer.mjs'

const list = document.querySelector('[data-results]')
const NEAR = 1500 // pixels from the window
const MOST_PAGES = 6
// A search may find nothing in many pages: after this many, the visitor is asked.
const MOST_EMPTY = 5
let empty = 0

async function load(address) {
  const found = await pageAt(address)
  return { page: found.querySelector('[data-results] .page'), more: found.querySelector('[data-more]') }
}

function says(text) {
  list.querySelector('[data-says]').textContent = text
}

/** Puts the page behind the link after the last one. */
async function follow(link) {
  if (link.hasAttribute('aria-busy')) return
  const hadFocus = document.activeElement === link
  link.setAttribute('aria-busy', 'true')
  says(list.dataset.loading)
  let found
  try {
    found = await load(link.href)
  } catch {
    link.removeAttribute('aria-busy')
    says(list.dataset.failed)
    return
  }
  const more = list.querySelector('[data-more]')
  empty = found.page.children.length ? 0 : empty + 1
  if (found.page.children.length) {
    more.before(document.adoptNode(found.page))
    pages.observe(found.page)
    writeTimes(found.page)
    if (hadFocus) found.page.querySelector('a, video, audio')?.focus({ preventScroll: true })
  }
  more.replaceWith(document.adoptNode(found.more))
  writeTimes(found.more)
  thin()
  watchEnd()
}

function watchEnd() {
  const link = list.querySelector('[data-more] a[rel=next]')
  if (link && empty < MOST_EMPTY) end.observe(link)
}

const end = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue
    end.unobserve(target)
    follow(target)
  }
}, { rootMargin: `${NEAR}px` })

list?.addEventListener('click', (event) => {
  const link = event.target.closest('a[rel=next]')
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return
  event.preventDefault()
  empty = 0
  follow(link)
})

/** A picture of which there is no small one, or whose file is gone, is shown by its name. */
function nameInstead(image) {
  const tile = image.parentElement
  const name = document.createElement('span')
  name.textContent = image.alt
  tile.classList.add('ending')
  image.replaceWith(name)
}

list?.addEventListener('error', (event) => {
  if (event.target.matches('img')) nameInstead(event.target)
}, true)

const isNear = (page) => {
  const { top, bottom } = page.getBoundingClientRect()
  return bottom > -NEAR && top < innerHeight + NEAR
}

/** Empties the pages that are furthest away, where there are too many. */
function thin() {
  const full = [...list.querySelectorAll('.page')].filter((page) => page.children.length)
  const far = (page) => Math.abs(page.getBoundingClientRect().top)
  // The first one would come back with what has ended since, which stands below it as well.
  const first = list.querySelector('.page')
  const spare = full.filter((page) => page !== first && !isNear(page) && !page.contains(document.activeElement))
  spare.sort((one, other) => far(other) - far(one))
  for (const page of spare.slice(0, Math.max(0, full.length - MOST_PAGES))) {
    page.style.blockSize = `${page.offsetHeight}px`
    page.replaceChildren()
  }
}

async function fill(page) {
  if (page.children.length || page.hasAttribute('aria-busy')) return
  page.setAttribute('aria-busy', 'true')
  try {
    const found = await load(page.dataset.address)
    page.replaceChildren(...found.page.children)
    page.style.blockSize = ''
    writeTimes(page)
    thin()
  } catch {
    says(list.dataset.failed)
  } finally {
    page.removeAttribute('aria-busy')
  }
}

const pages = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) if (isIntersecting) fill(target)
  // A visitor who goes to a job and back comes back to the same page.
  const seen = [...list.querySelectorAll('.page')].find((page) => page.getBoundingClientRect().bottom > 0)
  if (seen && window.scrollY > 0) history.replaceState(null, '', seen.dataset.address)
}, { rootMargin: `${NEAR}px` })

/** Says how many jobs have ended since the page was made; it stays as it is, since one may be looking at it. */
function tellOfEnds(note) {
  const ended = new Set()
  openFeed({
    want: ['ended'],
    on: {
      ended: ({ id }) => {
        ended.add(id)
        note.querySelector('span').textContent = note.dataset.fresh.replace('{count}', ended.size)
        note.hidden = false
      },
    },
  })
}

if (list) {
  tellOfEnds(document.querySelector('[data-fresh]'))
  const pictures = () => [...list.querySelectorAll('a.tile')].filter((tile) => tile.querySelector('img'))
  viewPictures(list, document.querySelector('[data-viewer]'), pictures)
  for (const page of list.querySelectorAll('.page')) pages.observe(page)
  for (const image of list.querySelectorAll('img')) if (image.complete && !image.naturalWidth) nameInstead(image)
  watchEnd()
}
