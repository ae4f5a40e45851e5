"""The read API of volumes: what the mirror holds, for whoever reads BDN volumes over HTTP."""
