use hotset as _;
