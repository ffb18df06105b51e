"""From TileLang to what ships: CUDA text, cubins, launchers, bundles."""
