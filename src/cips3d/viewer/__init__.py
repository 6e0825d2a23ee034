"""The interactive viewer in the browser (`cips3d view`), on viser: `server.Viewer`."""
