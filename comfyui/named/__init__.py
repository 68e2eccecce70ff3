"""Named workflows: files of WORKFLOWS_DIR whose parameters have names, types and limits."""
