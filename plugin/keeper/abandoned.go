package keeper

// Abandoned lists the keepers of the state directory that have a folder and do not listen: they were killed, and nobody
// has followed them yet, or ever will, if all that stood by their layers were killed with them.
func (c *Client) Abandoned() (keys []string, err error) {
	all, err := c.dir().keys()
	for _, k := range all {
		if !alive(c.dir().socket(k)) {
			keys = append(keys, k)
		}
	}
	return keys, err
}
