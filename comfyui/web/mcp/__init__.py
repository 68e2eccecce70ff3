"""The Model Context Protocol at `/mcp`, by the official `mcp` package, which is imported only where `MCP` is true."""
