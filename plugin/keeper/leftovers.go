package keeper

import "context"

// Keepers counts the keepers that live, and gives the folders of those that are
// gone and could not take theirs away. One that is about to start or to end has a
// folder for a moment without listening: it may be among the latter.
func (c *Client) Keepers(ctx context.Context) (living int, left []string, err error) {
	dir := c.dir()
	keys, err := dir.keys()
	if err != nil {
		return 0, nil, err
	}
	for _, k := range keys {
		if err := ctx.Err(); err != nil {
			return living, left, err
		}
		if alive(dir.socket(k)) {
			living++
		} else {
			left = append(left, dir.keeper(k))
		}
	}
	return living, left, nil
}
