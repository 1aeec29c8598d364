// Views of an image, its overlays and a reconstruction beside it, in NiiVue. Positions are fractions of the field of view.
"use strict";

const AXES = { sagittal: 0, coronal: 1, axial: 2 };

class Viewer {
  constructor() {
    this.image = null;
    this.views = {};
    this.place = document.getElementById("viewers");
  }

  async open(name) {
    if (!this.views[name]) {
      const view = new niivue.Niivue({
        dragAndDropEnabled: false, crosshairWidth: 0.4, crosshairColor: [0.35, 0.6, 1, 0.6], loadingText: "", multiplanarShowRender: 1, isColorbar: false, logLevel: "error",
        backColor: [0, 0, 0, 1], show3Dcrosshair: true,
      });
      await view.attachToCanvas(document.getElementById(`${name}-canvas`));
      view.onLocationChange = () => this.follow(view);
      this.views[name] = view;
    }
    return this.views[name];
  }

  clear(view) {
    for (const volume of [...view.volumes]) view.removeVolume(volume);
  }

  async add(view, blob, name, colormap, opacity, range) {
    const url = URL.createObjectURL(blob);
    try {
      const limits = range ? { cal_min: range[0], cal_max: range[1] } : {};
      view.addVolume(await niivue.NVImage.loadFromUrl({ url, name, colormap, opacity, ...limits }));
    } finally {
      URL.revokeObjectURL(url);
    }
  }

  // layers: [{blob, name, colormap, opacity, range}]; the first is the image itself
  async show(image, layers, reconstruction) {
    this.place.dataset.state = "loading";
    try {
      this.image = image;
      const view = await this.open("input");
      this.clear(view);
      for (const layer of layers) await this.add(view, layer.blob, layer.name, layer.colormap, layer.opacity, layer.range);
      document.getElementById("result-figure").hidden = !reconstruction;
      if (reconstruction) {
        const result = await this.open("result");
        this.clear(result);
        await this.add(result, layers[0].blob, "input.nii", "gray", 1);
        await this.add(result, reconstruction, "reconstruction.nii", "gray", 1);
      } else if (this.views.result) {
        this.clear(this.views.result);
      }
      this.arrange();
      this.place.dataset.volumes = view.volumes.length + (reconstruction ? this.views.result.volumes.length : 0);
      this.place.dataset.state = "ready";
    } catch (error) {
      this.place.dataset.state = "failed";
      document.getElementById("viewer-note").textContent = `The viewer needs WebGL 2 (${error}). Answers and downloads work without it.`;
    }
  }

  active() {
    return Object.values(this.views).filter((view) => view.volumes.length);
  }

  arrange() {
    const all = document.getElementById("view").value === "all";
    const types = { axial: "sliceTypeAxial", coronal: "sliceTypeCoronal", sagittal: "sliceTypeSagittal" };
    for (const view of this.active()) view.setSliceType(all ? view.sliceTypeMultiplanar : view[types[this.image.plane]]);
    this.go(Number(document.getElementById("slice").value));
  }

  // slice: index in the file's own order
  go(slice) {
    const depth = this.image.shape[0];
    const position = ((this.image.flipped ? depth - 1 - slice : slice) + 0.5) / depth;
    for (const view of this.active()) {
      view.scene.crosshairPos[AXES[this.image.plane]] = position;
      view.drawScene();
    }
  }

  follow(source) {
    const depth = this.image.shape[0];
    const index = Math.min(depth - 1, Math.floor(source.scene.crosshairPos[AXES[this.image.plane]] * depth));
    const slice = this.image.flipped ? depth - 1 - index : index;
    document.getElementById("slice").value = slice;
    document.getElementById("slice-number").value = `${slice + 1} of ${depth}`;
    for (const view of this.active()) {
      if (view === source) continue;
      for (const axis of [0, 1, 2]) view.scene.crosshairPos[axis] = source.scene.crosshairPos[axis];
      view.drawScene();
    }
  }

  setOpacity(value) {
    const views = this.views.result && this.views.result.volumes.length ? [this.views.result] : this.active();
    for (const view of views) {
      for (let index = 1; index < view.volumes.length; index++) view.setOpacity(index, value);
    }
  }
}
