"""OpenAI's image API over named workflows: https://platform.openai.com/docs/api-reference/images."""
