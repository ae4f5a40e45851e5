"""Several nodes on one machine: namespaces with links of their own, real commands, every byte counted."""
