// The Now page: the feed brings the cards of the servers and the beginning of the queue anew when they have changed.

import { openFeed } from './feed.mjs'

openFeed({ want: ['servers', 'queue', 'progress', 'previews'], reload: true })
