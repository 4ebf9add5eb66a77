NAMES = ("exposition", "labels", "features", "settings", "rpc", "health", "fabric")
