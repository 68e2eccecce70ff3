// The page of one job: what changes while it waits and runs, and its workflow in ComfyUI's own page.

import { oneAtATime, pageAt, root, tell } from './console.mjs'
import { morph, openFeed } from './feed.mjs'

const LOOK_EVERY_MS = 200
const PATIENCE_MS = 120000
const PLACE_EVERY_MS = 3000

const job = document.getElementById('job')

/** Only pages with this module can open another one. */
function showOpeners() {
  for (const button of job.querySelectorAll('button[data-open]')) button.hidden = false
}

/** Brings the job up to date. Returns whether it has ended. */
async function renew() {
  const fresh = (await pageAt(window.location.href)).getElementById('job')
  if (!fresh) return false
  job.dataset.state = fresh.dataset.state
  morph(job, fresh.innerHTML)
  showOpeners()
  return !('follow' in fresh.dataset)
}

function follow() {
  const id = job.dataset.job
  let isOver = false
  let renewedAt = Date.now()
  let later

  const renewed = oneAtATime(async () => {
    if (isOver) return
    renewedAt = Date.now()
    isOver = await renew().catch(() => false)
    if (isOver) feed.close()
  })

  function again() {
    clearTimeout(later)
    later = undefined
    renewed()
  }

  const feed = openFeed({
    want: ['progress', 'previews', 'ended', 'changes'],
    job: id,
    on: {
      ended: again,
      progress: () => { if (job.dataset.state !== 'running') again() },
      // Its place in the queue.
      changes: () => {
        if (job.dataset.state === 'running' || later) return
        later = setTimeout(again, Math.max(0, renewedAt + PLACE_EVERY_MS - Date.now()))
      },
      // A change between the page and the begin of its feed sent no event.
      open: again,
    },
  })
}

/** Waits until ComfyUI's page has loaded the workflow that it begins with, which would take the place of ours. */
async function ready(page) {
  const until = Date.now() + PATIENCE_MS
  while (Date.now() < until && !page.closed) {
    try {
      const app = page.app
      if (app?.graph && app.extensionManager?.workflow?.activeWorkflow && app.loadGraphData) return app
    } catch {
      // It shows another site, or none yet.
    }
    await new Promise((done) => setTimeout(done, LOOK_EVERY_MS))
  }
  return null
}

async function openInComfyUI(button) {
  const page = window.open(new URL(root, document.baseURI), '_blank')
  if (!page) return tell(button.dataset.blocked, { alert: true })
  button.setAttribute('aria-busy', 'true')
  try {
    const answer = await fetch(button.dataset.workflow)
    if (!answer.ok) throw new Error(answer.statusText)
    const text = await answer.text()
    const app = await ready(page)
    if (!app) {
      if (!page.closed) tell(button.dataset.slow, { alert: true })
      return
    }
    // An object of that page: what it makes of it outlives this one.
    const workflow = page.JSON.parse(text)
    if (button.dataset.open === 'editor') await app.loadGraphData(workflow, true, true, button.dataset.name)
    else await app.loadApiJson(workflow, button.dataset.name)
  } catch (error) {
    tell(document.body.dataset.failed.replace('{reason}', error.message), { alert: true })
  } finally {
    button.removeAttribute('aria-busy')
  }
}

showOpeners()
if ('follow' in job.dataset) follow()
job.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-open]')
  if (button) openInComfyUI(button)
})
