"""The answers of several servers about themselves, merged into the answer of one."""

from __future__ import annotations

from comfyui.web.comfyui.merging import merged_features, merged_files, merged_folders, merged_names, merged_stats


def test_only_features_of_all_servers_remain_and_a_number_is_the_smallest() -> None:
    first = {"preview": True, "max_upload_size": 200, "old": False, "name": "a", "extension": {"manager": True, "n": 2}}
    other = {"preview": True, "max_upload_size": 100, "old": True, "new": True, "name": "b", "extension": {"n": 1}}
    assert merged_features([first, other]) == {
        "preview": True,
        "max_upload_size": 100,
        "old": False,
        "name": "a",
        "extension": {"n": 1},
    }


def test_devices_of_all_servers_get_new_numbers() -> None:
    def stats(os: str, *names: str) -> dict[str, object]:
        devices = [{"name": name, "type": "cuda", "index": index, "vram_free": 1} for index, name in enumerate(names)]
        return {"system": {"os": os}, "devices": devices}

    merged = merged_stats([("gpu-1", stats("a", "cuda:0 X")), ("gpu-2", stats("b", "cuda:0 Y", "cuda:1 Y"))])
    assert merged["system"] == {"os": "a"}
    assert [(device["index"], device["name"]) for device in merged["devices"]] == [
        (0, "gpu-1: cuda:0 X"),
        (1, "gpu-2: cuda:0 Y"),
        (2, "gpu-2: cuda:1 Y"),
    ]


def test_merged_lists_have_each_name_once() -> None:
    assert merged_names([["b", "a"], ["a", "c"], None]) == ["b", "a", "c"]
    assert merged_folders(
        [[{"name": "loras", "folders": ["/a"]}], [{"name": "loras", "folders": ["/a", "/b"]}, {"name": "vae"}]]
    ) == [{"name": "loras", "folders": ["/a", "/b"]}, {"name": "vae"}]
    assert merged_files([[{"name": "x", "size": 1}], [{"name": "x", "size": 2}, {"name": "y", "size": 3}]]) == [
        {"name": "x", "size": 1},
        {"name": "y", "size": 3},
    ]
