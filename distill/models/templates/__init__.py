"""Chat templates: their sources, the marks that they write, a bounded trial, and what a server makes of them."""
