"""`ai-cli chat`: a conversation line by line."""
