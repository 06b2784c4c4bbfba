"""stub"""
def write_scan_page(out, *, before=None): pass
