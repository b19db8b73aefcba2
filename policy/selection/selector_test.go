package selection

import (
	"slices"
	"testing"
	"time"

	"github.com/distribution/reference"
	"pgregory.net/rapid"

	"github.com/faultgraft/faultgraft/policy/faultpolicy"
)

var now = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

func TestSelector(t *testing.T) {
	pg := Container{
		Namespace: "default", ID: "0123", Name: "pg-main", Image: "docker.io/library/postgres:16", Started: now.Add(-time.Minute),
		Labels: map[string]string{"app": "pg", "tier": "db", "empty": ""}, Annotations: map[string]string{"note": "x"},
	}
	pod := Container{
		Namespace: "k8s.io", ID: "4567", Name: "etcd", Pod: "etcd-0", PodNamespace: "shop", Image: "registry.k8s.io/etcd:3.6",
		PodLabels: map[string]string{"app": "etcd"}, PodAnnotations: map[string]string{"team": "a"},
	}
	need := func(key string, op faultpolicy.Operator, values ...string) faultpolicy.Selector {
		return faultpolicy.Selector{MatchExpressions: []faultpolicy.Requirement{{Key: key, Operator: op, Values: values}}}
	}
	for _, c := range []struct {
		name    string
		s       faultpolicy.Selector
		pg, pod bool
	}{
		{"empty", faultpolicy.Selector{}, true, true},
		{"namespace", faultpolicy.Selector{Namespaces: []string{"lab", "def*"}}, true, false},
		{"labels", faultpolicy.Selector{MatchLabels: map[string]string{"app": "pg", "tier": "db"}}, true, false},
		{"one label is another", faultpolicy.Selector{MatchLabels: map[string]string{"app": "pg", "tier": "web"}}, false, false},
		{"empty label", faultpolicy.Selector{MatchLabels: map[string]string{"empty": ""}}, true, false},
		{"In", need("app", faultpolicy.In, "etcd", "pg"), true, false},
		{"NotIn", need("app", faultpolicy.NotIn, "pg"), false, true}, // no label is none of the values
		{"Exists", need("empty", faultpolicy.Exists), true, false},
		{"DoesNotExist", need("empty", faultpolicy.DoesNotExist), false, true},
		{"annotations", faultpolicy.Selector{MatchAnnotations: map[string]string{"note": "x"}}, true, false},
		{"familiar image", faultpolicy.Selector{Images: []string{"postgres:*"}}, true, false},
		{"full image", faultpolicy.Selector{Images: []string{"docker.io/library/postgres:16"}}, true, false},
		{"image without tag", faultpolicy.Selector{Images: []string{"postgres"}}, true, false},
		{"images of a registry", faultpolicy.Selector{Images: []string{"registry.k8s.io/*"}}, false, true},
		{"container", faultpolicy.Selector{ContainerNames: []string{"pg-ma?n"}}, true, false},
		{"pod", faultpolicy.Selector{PodNames: []string{"etcd-*"}}, false, true},
		{"any pod", faultpolicy.Selector{PodNames: []string{"*"}}, false, true},
		{"pod namespace", faultpolicy.Selector{PodNamespaces: []string{"shop"}}, false, true},
		{"pods", faultpolicy.Selector{Pods: []string{"shop/etcd-0"}}, false, true},
		{"pods of another namespace", faultpolicy.Selector{Pods: []string{"sho/etcd-0", "shop/etcd-1"}}, false, false},
		{"pod labels", faultpolicy.Selector{PodSelector: &faultpolicy.PodSelector{MatchLabels: map[string]string{"app": "etcd"}}}, false, true},
		{"pod annotations", faultpolicy.Selector{PodSelector: &faultpolicy.PodSelector{MatchAnnotations: map[string]string{"team": "b"}}}, false, false},
		{"pod without a label", faultpolicy.Selector{PodSelector: &faultpolicy.PodSelector{MatchExpressions: []faultpolicy.Requirement{{Key: "x", Operator: faultpolicy.DoesNotExist}}}}, false, true},
		{"all must hold", faultpolicy.Selector{Namespaces: []string{"default"}, PodNames: []string{"*"}}, false, false},
		{"old enough", faultpolicy.Selector{MinAge: faultpolicy.Duration(time.Minute)}, true, false},
		{"too old", faultpolicy.Selector{MaxAge: faultpolicy.Duration(time.Minute)}, false, false},
	} {
		s, err := CompileSelector(c.s)
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range []struct {
			c    *Container
			want bool
		}{{&pg, c.pg}, {&pod, c.pod}} {
			if ok, until := s.Matches(x.c, now); ok != x.want || !until.IsZero() {
				t.Errorf("%s: %s: %v until %v", c.name, x.c.Name, ok, until)
			}
		}
	}
	if _, err := CompileSelector(faultpolicy.Selector{Images: []string{"a["}}); err == nil {
		t.Error("a wrong glob is taken")
	}
}

// TestAge shows that until is the moment at which the answer changes, and that it changes only then.
func TestAge(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		seconds := func(name string) faultpolicy.Duration {
			return faultpolicy.Duration(rapid.IntRange(0, 50).Draw(t, name)) * faultpolicy.Duration(time.Second)
		}
		s, err := CompileSelector(faultpolicy.Selector{MinAge: seconds("min"), MaxAge: seconds("max")})
		if err != nil {
			t.Fatal(err)
		}
		c := &Container{Started: now}
		at := now.Add(time.Duration(seconds("at")))
		ok, until := s.Matches(c, at)
		if until.IsZero() {
			until = at.Add(time.Hour)
		} else if after, _ := s.Matches(c, until); after == ok && s.minAge < s.maxAge {
			t.Fatalf("%v at %v and still at %v", ok, at, until)
		}
		for x := at; x.Before(until); x = x.Add(time.Second) {
			if again, _ := s.Matches(c, x); again != ok {
				t.Fatalf("%v at %v, but %v at %v", ok, at, again, x)
			}
		}
	})
}

// TestImageNames compares with the rules of the library.
func TestImageNames(t *testing.T) {
	for _, image := range []string{
		"docker.io/library/postgres:16", "postgres:16", "bitnami/redis:7", "docker.io/bitnami/redis:7", "registry.k8s.io/etcd:3.6", "localhost/x:1", "localhost:5000/a/b:1", "quay.io:443/a/b",
		"docker.io/library/alpine:3.20@sha256:0123456789012345678901234567890123456789012345678901234567890123", "quay.io/a@sha256:0123456789012345678901234567890123456789012345678901234567890123",
	} {
		got := imageNames(image)
		ref, err := reference.ParseNormalizedNamed(image)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{image, ref.String(), ref.Name(), reference.FamiliarString(ref), reference.FamiliarName(ref)} {
			if !slices.Contains(got, want) {
				t.Errorf("%s is not known as %s: %q", image, want, got)
			}
		}
	}
	if got := imageNames(""); got != nil {
		t.Errorf("%q", got)
	}
}
