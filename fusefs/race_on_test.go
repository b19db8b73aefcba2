//go:build race

package fusefs_test

const raceDetector = true // everything takes ten times as long
