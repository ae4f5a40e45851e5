"""The upstream stores. Each answers the one protocol in `base`; foreign errors end here."""
