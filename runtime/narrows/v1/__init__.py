"""Generated from proto/narrows/v1 by `make proto`; never edited by hand."""
