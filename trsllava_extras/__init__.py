"""Everything beside the method, one job a file or folder; each plugs into the core
(``trsllava_utils/plugins.py``) and can be deleted with its tests.

    rasters/  metadata  layouts  download        images, places, dates, annotations   (notebook 00)
    choice  servers/  local_vlm  pixels          who writes captions                  (notebook 01)
    clip  panel/  gallery/                       other ways to search                 (notebook 03)
    experiments  results  figures  pages         what comes of it                     (notebook 04)
    cluster  cli/                                where and how it runs
"""
