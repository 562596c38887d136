"""Rasters: GeoTIFF, JPEG 2000, Erdas, ENVI, VRT; bands, stretch, scenes, places."""
