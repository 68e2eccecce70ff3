// The page of one job: its workflow in ComfyUI's own page.

import { root, tell } from './console.mjs'

const LOOK_EVERY_MS = 200
const PATIENCE_MS = 120000

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

document.addEventListener('click', async (event) => {
  const button = event.target.closest('button[data-open]')
  if (!button) return
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
    // Objects of that page: what it makes of them outlives this one.
    const workflow = page.JSON.parse(text)
    if (button.dataset.open === 'editor') await app.loadGraphData(workflow, true, true, button.dataset.name)
    else await app.loadApiJson(workflow, button.dataset.name)
  } catch (error) {
    tell(document.body.dataset.failed.replace('{reason}', error.message), { alert: true })
  } finally {
    button.removeAttribute('aria-busy')
  }
})

for (const button of document.querySelectorAll('button[data-open]')) button.hidden = false
