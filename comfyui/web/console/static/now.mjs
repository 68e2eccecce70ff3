// The Now page: the feed sends the cards of the servers and the beginning of the queue again when they have changed.

import { openFeed } from './feed.mjs'

openFeed({ want: ['servers', 'queue', 'progress', 'previews'], reload: true })
