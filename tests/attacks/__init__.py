"""Files made to do harm, and what has to happen to each; `README.md` lists them."""
