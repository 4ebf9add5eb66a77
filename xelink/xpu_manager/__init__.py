"""XPU Manager as the source of links: the scrape, its TLS, its exposition, its meaning."""
