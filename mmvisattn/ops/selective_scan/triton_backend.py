DEVICE = 'cuda'
def unavailable_reason():
    return 'not written yet'
