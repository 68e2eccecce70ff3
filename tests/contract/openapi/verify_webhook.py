"""Verifies one webhook, read as JSON from stdin, with the package of Svix."""

import json
import sys

import svix.webhooks

given = json.load(sys.stdin)
webhook = svix.webhooks.Webhook(given["secret"])
webhook.verify(given["body"], given["headers"])
try:
    webhook.verify(given["body"] + " ", given["headers"])
except svix.webhooks.WebhookVerificationError:
    print("verified by svix")
