// The queue: what a visitor has changed is shown at once, and a box that selects all that the page has.

import { oneAtATime, pageAt } from './console.mjs'
import { morph, openFeed } from './feed.mjs'

const queue = document.getElementById('queue')

/** Loads this page again, and changes what is different: what has the focus, is typed or selected stays. */
export async function show() {
  let page
  try {
    page = await pageAt(window.location.href)
  } catch {
    return // The feed, or the next change, says so.
  }
  morph(queue, page.getElementById('queue').innerHTML)
  prepare()
}

function boxes() {
  return [...queue.querySelectorAll('input[name=job]')]
}

/** What only a page with this module has. */
function prepare() {
  const all = queue.querySelector('[data-selects]')
  if (all) all.hidden = false
}

queue.addEventListener('change', (event) => {
  const all = queue.querySelector('[data-selects] input')
  if (event.target === all) for (const box of boxes()) box.checked = all.checked
  else if (event.target.name === 'job') all.checked = boxes().every((box) => box.checked)
})
queue.addEventListener('done', show)

/** At most once in two seconds: with a long queue there is always something. */
const follow = oneAtATime(async () => {
  await show()
  await new Promise((resolve) => setTimeout(resolve, 2000))
})

prepare()
openFeed({ want: ['changes'], on: { changes: follow, open: follow } })
