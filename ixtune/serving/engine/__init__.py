"""The engine of the server: the models in memory, and the thread that answers requests with them."""
