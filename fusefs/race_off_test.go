//go:build !race

package fusefs_test

const raceDetector = false
