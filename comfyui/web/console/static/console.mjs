// What every page has: forms that are sent in place, messages, and times that people read.

const body = document.body
export const root = body.dataset.root

/** Shows a message for some seconds, or until it is closed where it is an alert. */
export function tell(text, { alert = false } = {}) {
  const toast = document.createElement('div')
  toast.className = alert ? 'toast alert' : 'toast'
  if (alert) toast.setAttribute('role', 'alert')
  const words = document.createElement('span')
  words.textContent = text
  const close = document.createElement('button')
  close.type = 'button'
  close.className = 'plain'
  close.setAttribute('aria-label', body.dataset.close)
  close.textContent = '×'
  close.addEventListener('click', () => toast.remove())
  toast.append(words, close)
  document.querySelector('.toasts').append(toast)
  if (!alert) setTimeout(() => toast.remove(), 5000)
}

/** Sends a form, and gives what the gateway answers: {message, to, follow}. Throws an Error with the reason and the `answer`. */
export async function send(form, submitter) {
  const data = new FormData(form, submitter)
  // Attributes, since a field may have the name of one, and a button without one says that it is the page's address.
  const isFile = form.getAttribute('enctype') === 'multipart/form-data'
  let answer
  try {
    answer = await fetch(submitter?.getAttribute('formaction') || form.getAttribute('action'), {
      method: 'POST',
      body: isFile ? data : new URLSearchParams(data),
      headers: { Accept: 'application/json' },
    })
  } catch {
    throw new Error(body.dataset.unreachable)
  }
  const found = await answer.json().catch(() => ({}))
  if (!answer.ok) throw Object.assign(new Error(found.message || found.detail || answer.statusText), { answer: found })
  return found
}

// A form with data-send is sent in place; without this module the browser sends it and follows the answer.
document.addEventListener('submit', async (event) => {
  const form = event.target
  if (!form.matches('form[data-send]') || event.defaultPrevented) return
  event.preventDefault()
  const submitter = event.submitter
  if (submitter?.dataset.confirm && !window.confirm(submitter.dataset.confirm)) return
  submitter?.setAttribute('aria-busy', 'true')
  try {
    const done = await send(form, submitter)
    if (done.follow) window.location.href = done.to
    else {
      tell(done.message)
      form.dispatchEvent(new CustomEvent('done', { bubbles: true, detail: done }))
    }
  } catch (error) {
    tell(body.dataset.failed.replace('{reason}', error.message), { alert: true })
  } finally {
    submitter?.removeAttribute('aria-busy')
  }
})

/** The page at an address of ours, as a document. Throws where the gateway gives another one, such as the sign-in page. */
export async function pageAt(address) {
  const answer = await fetch(address, { headers: { Accept: 'text/html' } })
  if (!answer.ok || answer.redirected) throw new Error(answer.statusText)
  return new DOMParser().parseFromString(await answer.text(), 'text/html')
}

/** Makes a function that runs `work` once at a time; a call meanwhile has it run once more. */
export function oneAtATime(work) {
  let isRunning = false
  let again = false
  return async () => {
    again = true
    if (isRunning) return
    isRunning = true
    try {
      while (again) {
        again = false
        await work()
      }
    } finally {
      isRunning = false
    }
  }
}

const relative = new Intl.RelativeTimeFormat(document.documentElement.lang, { numeric: 'auto', style: 'short' })
const units = [['second', 60], ['minute', 60], ['hour', 24], ['day', Infinity]]

/** Writes each <time datetime data-relative> below `part` as "3 min. ago"; its title has the whole time. */
export function writeTimes(part = document) {
  for (const time of part.querySelectorAll('time[data-relative]')) {
    const at = new Date(time.dateTime)
    let value = (at - Date.now()) / 1000
    for (const [unit, many] of units) {
      if (Math.abs(value) < many) {
        time.textContent = relative.format(Math.round(value), unit)
        break
      }
      value /= many
    }
    time.title = at.toLocaleString()
  }
}

writeTimes()
setInterval(writeTimes, 10000)
