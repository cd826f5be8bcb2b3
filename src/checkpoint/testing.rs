//! A pickle and archive writer for tests: what `torch.save` writes, and what it never would.
