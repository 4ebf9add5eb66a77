"""`xelink simulate`: what each policy gets for Pods that come and go."""
