package route

import (
	"encoding/json"
	"os"
	"strconv"
	"testing"
)

func TestVectors(t *testing.T) {
	text, err := os.ReadFile("../../../protos/wfe/persistence/v1/namespace_sets.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Vectors []struct {
			Key     string         `json:"key"`
			Members map[string]int `json:"members"`
		} `json:"vectors"`
	}
	if err := json.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	checked := 0
	for _, vector := range file.Vectors {
		for count, index := range vector.Members {
			members, err := strconv.Atoi(count)
			if err != nil {
				t.Fatal(err)
			}
			if found := MemberOf(vector.Key, members); found != index {
				t.Errorf("%q of %d: %d, not %d", vector.Key, members, found, index)
			}
			checked++
		}
	}
	if checked < 200 {
		t.Errorf("only %d vectors", checked)
	}
}
